"""The console: a web page that shows the runs and models below a storage, and steers them.

growing_file, run_follower                read a storage's files, and only what is new of them
views/                                    turns what they hold into plain data; pure
watch, site, http_app                     tell browsers of changes, and do what they ask
child_jobs, ranking_child                 other processes, which do what takes time or memory
static/                                   the page
"""
