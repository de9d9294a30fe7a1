"""Appends several domains to a corpus at once: python append_worker.py CORPUS ROOT DOMAIN,..."""

import sys
from concurrent.futures import ThreadPoolExecutor

from corpus.append import append
from tests.unit.corpus.worlds import settings

corpus, root, names = sys.argv[1:]
with ThreadPoolExecutor(max_workers=8) as threads:
    appends = [
        threads.submit(append, settings(root, domains=(name,), held_out=()), 0, corpus, print)
        for name in names.split(",")
    ]
    print(*(appended.result().version for appended in appends))
