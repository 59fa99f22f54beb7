"""Teachers: who answers the questions of shards, and what is kept of the answers.

In the order in which data passes:

    settings    how a teacher is loaded and asked, what is kept
    local       a checkpoint answers
    labelling   the labels that a file lacks are asked for
    kept        labels as distillation reads them

Any other teacher is a class with the methods of `labelling.Teacher`.
"""
