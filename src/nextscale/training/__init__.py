"""Training of tokenizers, transformers and the small classifier that measures them."""
