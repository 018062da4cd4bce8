"""Every method once more, as one plain function with its loops visible.

``train(task, method, plan)`` distils ``task.teacher`` into ``task.student`` and returns nothing. It reads the method's
hyper-parameters but calls none of its code; the contract suite demands the same student, bit for bit.
"""
