"""Tasks: what a language model is asked to do with one text, or with every text of a file.

    with open_asker("smollm2-135m-instruct") as asker:
        Classify(["sport", "politics"]).run(asker, "The match ended 2:1.").value

A task says what is asked and what the answer must be; its value is JSON. An asker has it
answered: by a model on this machine (`local`), which is held to a grammar and whose labels are
compared by their likelihood, or by any chat model (`remote`), whose answers are checked. `batch`
has a whole file answered, several texts at once, and goes on where an earlier process stopped.
"""

from collections.abc import Mapping

from trivium.llmos.tasks.asking import Example as Example
from trivium.llmos.tasks.asking import Outcome as Outcome
from trivium.llmos.tasks.asking import open_asker as open_asker
from trivium.llmos.tasks.batch import run_file as run_file
from trivium.llmos.tasks.choosing import Classify as Classify
from trivium.llmos.tasks.choosing import Sentiment as Sentiment
from trivium.llmos.tasks.finding import Answer as Answer
from trivium.llmos.tasks.finding import Extract as Extract
from trivium.llmos.tasks.task import Task as Task
from trivium.llmos.tasks.task import read_examples as read_examples
from trivium.llmos.tasks.writing import Fill as Fill
from trivium.llmos.tasks.writing import Summarise as Summarise
from trivium.llmos.tasks.writing import Translate as Translate

TASKS: Mapping[str, type[Task]] = {
    task.name: task for task in (Sentiment, Classify, Extract, Summarise, Translate, Answer)
}
