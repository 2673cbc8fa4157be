"""First-frame fine-tuning without torch."""
