"""The update: SOAP, NAdamW and AdamW, learning rates, the mean of weights, partial training."""
