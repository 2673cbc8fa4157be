"""Array operations of the runtime, one module per device."""
