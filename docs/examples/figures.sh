rbd figures --allow-missing                        # all figures and tables, with what is missing named in them
rbd figures table1 dimension                       # some; a figure that lacks a run fails and names it
rbd figures --profile paper --allow-missing
rbd report --into README.md                        # the tables of README.md, and the learning curves of table 1
