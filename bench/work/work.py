"""Objects, dictionaries, strings and integers: N rounds."""
import sys


class Point:
    def __init__(self, x, y):
        self.x, self.y = x, y

    def plus(self, other):
        return Point(self.x + other.x, self.y - other.y)


def once():
    p, step = Point(0, 0), Point(1, 2)
    for _ in range(5000):
        p = p.plus(step)
    count = {}
    for i in range(10000):
        word = 'w%d' % (i * 2654435761 % 1024)
        count[word] = count.get(word, 0) + 1
    return p.x + len(sorted(count, key=lambda w: (-count[w], w)))


for _ in range(int(sys.argv[1])):
    assert once() > 5000
