"""Where versions and models are kept: three contracts, and the backends that fulfil them."""
