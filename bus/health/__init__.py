"""What health is made of: checks and their rounds, figures of the machine, the loop's pulse, disk alarm, canary."""
