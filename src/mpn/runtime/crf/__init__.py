"""Dense CRF on the host, and its options."""

from mpn.runtime.crf.dense import dense_crf as dense_crf
