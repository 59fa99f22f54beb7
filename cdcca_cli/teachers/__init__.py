"""Teachers: who answers the questions of shards, and what is kept of the answers.

In the order in which data passes:

    settings    how a local teacher is loaded, what is kept
    opening     a teacher by its name
    local       a checkpoint answers
    chat        what a chat server is asked, and what it replies
    server      an OpenAI-compatible address: many requests in flight, retries
    batch       requests and answers in files
    signal      whether a server receives the picture
    served      shards to labels through a server or a file of answers
    labelling   the labels that a file lacks are asked for
    kept        labels as distillation reads them

Any other teacher is a class with the methods of `labelling.Teacher`.
"""
