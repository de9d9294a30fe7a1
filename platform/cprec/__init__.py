"""The platform: what is trained next and at which rate, the stream, the training, the evaluation, the registry."""
