"""Rankings that a language model writes as a list, when an instruction asks for one."""
