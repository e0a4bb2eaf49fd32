"""How well models predict texts, and what a change of weights, types or kernels costs them."""
