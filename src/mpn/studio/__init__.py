"""Web page to draw masks, run, correct and run again: ``mpn studio``."""
