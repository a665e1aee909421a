"""The released models as the authors' torch.hub gives them, for their notebooks."""
