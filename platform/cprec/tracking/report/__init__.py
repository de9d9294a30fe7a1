"""The report of a run: one page, or Markdown, that a colleague understands without us.

content, evaluations, cost, event_words    say what there is to say; pure
lineage_picture                            draws where versions come from
page                                       writes all of it, as HTML or as Markdown
"""
