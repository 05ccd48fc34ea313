"""Prompts that drafts are measured on, by kind of text, and others that they are made with."""

CHECK = {
    "chat": (
        "Explain in a few sentences why the sea is salty.",
        "I have an interview tomorrow and I am nervous. What should I do tonight?",
        "What is the difference between a violin and a viola?",
        "Give me three ideas for a birthday present for my grandfather, who likes gardening.",
    ),
    "code": (
        "Write a Python function that returns all prime numbers below n, with a docstring.",
        "Write a Python class Account with the methods deposit, withdraw and balance.",
        "Write a JavaScript function that groups a list of objects by the value of one key.",
        "Write a shell script that renames every .txt file in a folder to .md.",
    ),
    "copy": (
        "Repeat this text and change nothing but the day, which is Friday:\n\nThe meeting is on Tuesday at ten in the "
        "small room on the first floor. Please bring the figures for last month and a copy of the plan.",
        "Add a parameter named limit, 10 by default, and repeat the function whole:\n\ndef newest(files):\n"
        '    """The newest files first."""\n    found = sorted(files, key=lambda f: f.changed, reverse=True)\n'
        "    return [f.name for f in found if not f.hidden]\n",
        "Copy this list and number its lines:\n\napples from the garden\nflour and yeast\ntwo jars of honey\n"
        "a basket of walnuts\nblack tea\n",
        "Quote the first two sentences of this text word for word:\n\nThe lighthouse was built in 1872 on a rock that "
        "is covered by the sea twice a day. Its keeper lived there for months without seeing the land. Today a "
        "computer turns the lamp on and off.",
    ),
}

MAKE = (
    "Describe how bread is made, from flour to loaf.",
    "Write an e-mail to my landlord about a window that does not close.",
    "What happened to the dinosaurs? Answer in one paragraph.",
    "Write a Python function that counts the words of a text file and prints the ten most frequent ones.",
    "Write a SQL query that returns the average price of the products of each category.",
    "Correct the mistakes in this text and repeat it whole:\n\nYesterday we goes to the market and buyed three kilo of "
    "tomatos. The womans who sells them telled us that they was picked in the morning.",
    "Translate into plain English: the party of the first part shall indemnify the party of the second part.",
    "How much is 17 times 24? Show your work.",
)
