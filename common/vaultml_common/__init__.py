"""What the worker and the operator must agree on, said once. It imports neither of them."""
