"""Run ``mpn run``: request, outputs, resume and report."""
