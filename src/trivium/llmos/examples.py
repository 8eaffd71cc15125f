"""Example requests for the built-in tools, and what a good assistant does with each.

A small model that was never trained on tools is shown these: all of them to learn which tool a
request is for, the few nearest ones to fill in the arguments (see `trivium.llmos.few_shot`).
"""

from typing import Any

Example = tuple[str, dict[str, Any]]

NO_TOOL: tuple[str, ...] = (
    "Who wrote Hamlet?",
    "Write a short poem about the sea.",
    "Thank you, that helps!",
    "What is a variable in Python?",
    "Give me three ideas for dinner.",
    "Why is the sky blue?",
    "How do I say good morning in Spanish?",
    "What does RAM stand for?",
    "给我讲个笑话",
    "Is it worth learning to cook?",
    "How long do cats usually live?",
    "So which of the two would you choose?",
    "Explain what a file system is, for a child.",
    "my neighbour is too loud, what should i do",
    "Which is bigger, Jupiter or Saturn?",
    "Make this sentence more polite: Send me the report.",
    "Who was president of France in 1990?",
    "What's the difference between a folder and a file?",
    "你叫什么名字？",
    "hi, how are you?",
    "Tell me something about Norway.",
    "And what about Italy?",
    "What is the capital of Peru?",
    "Who painted the Mona Lisa?",
    "When did the Second World War end?",
    "Write an email to my boss that I am ill.",
    "Can you say that in one sentence?",
    "Name three rivers in Africa.",
    "Which of the two is older?",
    "什么是光合作用？",
)

EXAMPLES: dict[str, tuple[Example, ...]] = {
    "calculate": (
        ("What is 12 * 7?", {"expression": "12 * 7"}),
        ("How much is 15% of 80 euros?", {"expression": "15% of 80"}),
        ("I buy 3 books at 12.50 each, what do I pay in total?", {"expression": "3 * 12.50"}),
        ("sqrt(2) to the power of 5", {"expression": "sqrt(2) ** 5"}),
        ("A car drives 240 km in 3 hours, how fast is that per hour?", {"expression": "240 / 3"}),
        ("56除以8是多少？", {"expression": "56 / 8"}),
        ("whats 999 minus 345", {"expression": "999 - 345"}),
        (
            "Five friends share a bill of 84.20, how much does each pay?",
            {"expression": "84.20 / 5"},
        ),
        ("What is the remainder of 75 divided by 4?", {"expression": "75 % 4"}),
        (
            "A shirt costs 40 and is 25% cheaper today. What is the price?",
            {"expression": "40 * (1 - 25 / 100)"},
        ),
        ("I walk 4 km a day. How far is that in 30 days?", {"expression": "4 * 30"}),
        ("一支笔3元，买12支要多少钱？", {"expression": "3 * 12"}),
        ("2 eggs make 6 pancakes. How many eggs for 30 pancakes?", {"expression": "2 / 6 * 30"}),
        (
            "I earn 2400 a month and pay 800 rent. What is left in a year?",
            {"expression": "(2400 - 800) * 12"},
        ),
        ("(3 + 4) * 5 - 6 / 2 = ?", {"expression": "(3 + 4) * 5 - 6 / 2"}),
        ("If I earn 2400 a month, how much is that in a year?", {"expression": "2400 * 12"}),
        ("square root of 144", {"expression": "sqrt(144)"}),
        ("3 to the power of 8", {"expression": "3 ** 8"}),
        (
            "The train needs 90 minutes for 150 km. How far does it go in 60 minutes?",
            {"expression": "150 / 90 * 60"},
        ),
    ),
    "python": (
        (
            "Print the first 20 square numbers with Python.",
            {"code": "print([n ** 2 for n in range(1, 21)])"},
        ),
        (
            "Which day of the week was 4 July 1999?",
            {"code": "import datetime; print(datetime.date(1999, 7, 4).strftime('%A'))"},
        ),
        ("Reverse the word 'banana'.", {"code": "print('banana'[::-1])"}),
        (
            "How many days are there between 3 May 2024 and 9 August 2024?",
            {
                "code": "import datetime; print((datetime.date(2024, 8, 9) - datetime.date(2024, 5, 3)).days)"
            },
        ),
        (
            "Write a program that finds all primes under 100 and run it.",
            {"code": "print([n for n in range(2, 100) if all(n % d for d in range(2, n))])"},
        ),
        (
            "Count how often each letter occurs in 'mississippi'.",
            {"code": "import collections; print(collections.Counter('mississippi'))"},
        ),
        (
            "Use Python to sort these names: Tom, Anna, Zoe, Ben",
            {"code": "print(sorted(['Tom', 'Anna', 'Zoe', 'Ben']))"},
        ),
        (
            "What is the sum of all even numbers from 2 to 500?",
            {"code": "print(sum(range(2, 501, 2)))"},
        ),
        (
            "What are the median and the mean of 3, 9, 4 and 8?",
            {
                "code": "import statistics; print(statistics.median([3, 9, 4, 8]), statistics.mean([3, 9, 4, 8]))"
            },
        ),
        (
            "How many ways are there to arrange the letters of 'tree'?",
            {"code": "import itertools; print(len(set(itertools.permutations('tree'))))"},
        ),
        ("Write a loop that adds the numbers 1 to 1000.", {"code": "print(sum(range(1, 1001)))"}),
        (
            "Is 7919 a prime number? Check it with a program.",
            {"code": "n = 7919; print(n > 1 and all(n % d for d in range(2, int(n ** 0.5) + 1)))"},
        ),
        (
            "Plot the function x squared from -5 to 5.",
            {
                "code": "import matplotlib.pyplot as plt; x = range(-5, 6); plt.plot(x, [n ** 2 for n in x])"
            },
        ),
        (
            "用Python打印前10个质数",
            {"code": "print([n for n in range(2, 30) if all(n % d for d in range(2, n))])"},
        ),
        ("Convert 255 to binary and hexadecimal.", {"code": "print(bin(255), hex(255))"}),
        (
            "What is the sum of the cubes of the numbers from 1 to 20?",
            {"code": "print(sum(n ** 3 for n in range(1, 21)))"},
        ),
        (
            "Use Python to print the first 15 Fibonacci numbers.",
            {"code": "a, b = 0, 1\nfor _ in range(15):\n    print(a)\n    a, b = b, a + b"},
        ),
        (
            "How often does the word 'the' occur in 'the cat and the dog'?",
            {"code": "print('the cat and the dog'.split().count('the'))"},
        ),
    ),
    "read_file": (
        ("What does notes.txt say?", {"path": "notes.txt"}),
        ("Summarise the file docs/plan.md for me.", {"path": "docs/plan.md"}),
        ("Open report.csv and tell me the total.", {"path": "report.csv"}),
        ("打开 笔记.txt", {"path": "笔记.txt"}),
        ("what's in the shopping list.txt", {"path": "shopping list.txt"}),
        ("请看一下 报告/总结.md 里写了什么", {"path": "报告/总结.md"}),
        ("Look into src/main.py, is there a bug?", {"path": "src/main.py"}),
        ("Can you read letter.txt to me?", {"path": "letter.txt"}),
        ("show me the contents of data/results.json", {"path": "data/results.json"}),
        (
            "According to the handbook in manual/handbook.md, how many holidays do I get?",
            {"path": "manual/handbook.md"},
        ),
        ("When does the train leave according to travel.txt?", {"path": "travel.txt"}),
    ),
    "list_files": (
        ("Which files are here?", {"path": "."}),
        ("What is in the folder images?", {"path": "images"}),
        ("show me the folder", {"path": "."}),
        ("Is there anything in docs/?", {"path": "docs"}),
        ("ls My Photos", {"path": "My Photos"}),
        ("有哪些文件？", {"path": "."}),
        ("What files do I have?", {"path": "."}),
        ("List all files in the directory backup.", {"path": "backup"}),
        ("did the download folder get any new files", {"path": "download"}),
        ("What do we have in src/app?", {"path": "src/app"}),
    ),
    "search_files": (
        ("Where do I mention Anna in my files?", {"pattern": "Anna"}),
        ("Find all files that contain the word invoice.", {"pattern": "invoice"}),
        ("Which file has the function main in it?", {"pattern": "main"}),
        ("search for 'TODO' in src", {"pattern": "TODO", "path": "src"}),
        (
            "I wrote down a phone number somewhere, it starts with 0176. Find it.",
            {"pattern": "0176"},
        ),
        ("在文件里查找“合同”", {"pattern": "合同"}),
        ("Which of my notes talk about Berlin?", {"pattern": "Berlin"}),
        ("grep for error in the logs folder", {"pattern": "error", "path": "logs"}),
        ("Look through all documents for the name Miller.", {"pattern": "Miller"}),
        ("In which file is the variable timeout set?", {"pattern": "timeout"}),
    ),
    "write_file": (
        ("Save the text 'buy milk' in todo.txt.", {"path": "todo.txt", "text": "buy milk"}),
        ("Write 'meeting at 5' into memo.md.", {"path": "memo.md", "text": "meeting at 5"}),
        (
            "Please note down in diary.txt: today it rained.",
            {"path": "diary.txt", "text": "today it rained"},
        ),
        (
            "Put this sentence into a file quote.txt: Time flies.",
            {"path": "quote.txt", "text": "Time flies."},
        ),
        ("把“明天开会”保存到 提醒.txt", {"path": "提醒.txt", "text": "明天开会"}),
        ("store the line x=1 in config.ini", {"path": "config.ini", "text": "x=1"}),
        (
            "make a new file called names.txt with the names Anna, Ben and Carl",
            {"path": "names.txt", "text": "Anna, Ben and Carl"},
        ),
        (
            "add a file ideas/trip.txt that says go to Rome",
            {"path": "ideas/trip.txt", "text": "go to Rome"},
        ),
    ),
    "terminal": (
        ("Run ls -la.", {"command": "ls -la"}),
        ("Use the shell to count the lines of data.csv.", {"command": "wc -l data.csv"}),
        ("Which version of Python is installed?", {"command": "python3 --version"}),
        ("git status", {"command": "git status"}),
        ("Run the command 'date'.", {"command": "date"}),
        ("how much memory is free on this machine?", {"command": "free -h"}),
        ("Use the terminal to make a folder called backup.", {"command": "mkdir backup"}),
        ("Execute 'du -sh .'", {"command": "du -sh ."}),
        ("Show the running processes.", {"command": "ps aux"}),
        ("copy a.txt to b.txt with a shell command", {"command": "cp a.txt b.txt"}),
    ),
}
