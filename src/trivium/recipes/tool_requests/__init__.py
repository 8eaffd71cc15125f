"""Made-up conversations from which a small model learns to use tools.

    written      requests that were written one by one, each with its call
    patterns     sentences with choices and slots       tables       sentences, and words for slots
    stories      word problems                          sums         sums that are spelled out
    files        read, list, search, write              code         python and terminal
    other_tools  what a person may bring along          linked       follow-ups, several calls
    talk         what needs no tool                     replay       what the untrained model says
    problems     word problems of a file                linked_files those about files
    tasks        a request, its calls, its answer       dialogues    several of them and a tool list

Everything follows from a seed. But for `problems`, nobody's data are in it: what is `written` comes
from a large language model, the rest from patterns; files and results are made up, sums are
computed by the calculator, code is run, and plain answers are the model's own.
"""
