"""How fast this machine draws pictures, and what that is made of: ratios measured side by side in one run."""
