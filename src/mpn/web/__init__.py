"""Access control and limits that all HTTP servers of this package share."""
