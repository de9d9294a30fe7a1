"""What `import cprec` offers in a program or a notebook: a thin shell on the workflows."""
