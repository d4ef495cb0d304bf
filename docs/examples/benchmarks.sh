python3 -m venv .venv-tox && .venv-tox/bin/pip install -q tox     # once; asv's environments need Python 3.11 or later
.venv-tox/bin/tox -e bench                                        # the commit that is checked out, all benchmarks
.venv-tox/bin/tox -e bench -- run --show-stderr HEAD^! --bench ratios --bench step
.venv-tox/bin/tox -e bench -- continuous --factor 1.3 main HEAD   # exit status 1 and a list if something got slower
.venv-tox/bin/tox -e bench -- publish                             # asv's own site, into .asv/html
.venv-tox/bin/tox -e bench -- preview                             # serves it; its pages need the network
.venv-tox/bin/tox -e bench-quick                                  # each benchmark once, nothing saved: what CI runs
