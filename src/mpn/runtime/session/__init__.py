"""One run of ``mpn run``: request, outputs, resume and report."""
