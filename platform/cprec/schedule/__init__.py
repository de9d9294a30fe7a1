"""What is trained next, and at which learning rate (paper Sec. 4.4). Pure."""
