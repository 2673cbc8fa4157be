"""DenseCRF on the host."""

from mpn.runtime.crf.dense import dense_crf as dense_crf
