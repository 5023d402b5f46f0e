"""The models a text passes through, from tokens to an embedding."""
