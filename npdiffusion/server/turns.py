"""Whose picture is next: each client gets one in turn, so that nobody waits for another one's hundred.

    a a a a │ b │ c c      →      a b c a c a a
"""
import collections

from npdiffusion.server.limits import MOST_OF_ONE, MOST_WAITING, Busy


class Turns:
    """Jobs of clients, in a fair order. Whoever calls holds a lock."""
    def __init__(self):
        self.clients = collections.OrderedDict()         # client → {id: Job}, both in the order of their turns
        self.jobs = {}                                   # id → Job
        self.last = None                                 # the client whose turn it was

    def __len__(self):
        return len(self.jobs)

    def add(self, job, checked=True):
        """Put a job at the end of its client's. Busy if there are too many; checked=False takes it all the same."""
        own = self.clients.get(job.client, {})
        if checked and len(self.jobs) >= MOST_WAITING:
            raise Busy(f"{MOST_WAITING} requests are waiting, no more are taken now; try again later")
        if checked and len(own) >= MOST_OF_ONE:
            raise Busy(f"{MOST_OF_ONE} of your requests are waiting, no more are taken now; try again later")
        self.clients.setdefault(job.client, {})[job.id] = job
        self.jobs[job.id] = job

    def remove(self, job):
        """Take a job out, if it is there."""
        if self.jobs.pop(job.id, None):
            own = self.clients[job.client]
            del own[job.id]
            if not own:
                del self.clients[job.client]

    def next(self):
        """The job of which a picture is to be made now, or None; it stays here until it is removed"""
        if not self.clients:
            return None
        if self.last in self.clients:                    # not before now: whoever came in the meantime goes first
            self.clients.move_to_end(self.last)
        self.last, own = next(iter(self.clients.items()))
        return next(iter(own.values()))

    def ahead(self, job, now=None):
        """Pictures that come before the next one of a waiting job, and what they cost → (number, cost)

        now: the job of which a picture is at work, which isn't counted
        """
        own = 0
        for other in self.clients[job.client].values():
            if other is job:
                break
            own += other.left - (other is now)
        number, cost, mine_passed = own, own * job.cost, False
        for client, jobs in sorted(self.clients.items(), key=lambda item: item[0] == self.last):
            if client == job.client:
                mine_passed = True
                continue
            turns = own + (not mine_passed)              # those before us have a turn more
            for other in jobs.values():
                taken = min(other.left - (other is now), turns)
                number, cost, turns = number + taken, cost + taken * other.cost, turns - taken
                if not turns:
                    break
        return number, cost
