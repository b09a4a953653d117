"""The models of the paper as linen modules."""
