"""Other runtimes as contestants of `pilotfish bench peers`, each in a process of its own.

contract.py, worker.py and the runtimes' files import nothing of Pilotfish, so that any interpreter can run them: a
runtime may be installed in another environment. Only pilotfish_engine.py is Pilotfish.
"""
