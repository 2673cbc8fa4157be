"""int8 engines from an engine directory, if their masks pass a gate."""
