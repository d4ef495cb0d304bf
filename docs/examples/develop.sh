python3 -m venv .venv && .venv/bin/pip install -q tox && .venv/bin/tox
.venv/bin/tox -e lint,types      # seconds
.venv/bin/tox -e docs            # this site, into docs/_build/html
.venv/bin/tox -e accuracy        # small trainings, held to committed expectations
