"""The command `zeromuon finetune`: launch.py is the parent, worker.py is what each rank runs."""
