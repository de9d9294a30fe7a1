"""The paper's tables and figures from one recipe, by a graph of steps whose results are kept."""
