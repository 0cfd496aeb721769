"""What only a processor needs: faster products, attention and adapter layers, switched on in one place."""
