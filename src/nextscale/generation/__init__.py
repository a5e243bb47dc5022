"""The next-scale loop and the drawing of tokens, shared by all families."""
