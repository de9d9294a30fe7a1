"""The report of a run: one page, or Markdown, that a colleague understands without us.

content, evaluations, cost    say what there is to say; pure
lineage_picture               draws where versions come from
page                          renders all of it, as HTML or as Markdown
renewal                       makes it again, with what the registry knows
"""
