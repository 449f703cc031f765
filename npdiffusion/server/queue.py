"""Whose picture is next: each client gets one in turn, so that nobody waits for another one's hundred.

    a a a a │ b │ c c      →      a b c a c a a

Loading another model takes a while, so whoever wants the one that is loaded may go first, but only MOST_IN_A_ROW times.
"""
import collections

from npdiffusion.server.limits import MOST_OF_ONE, MOST_WAITING, Busy

MOST_IN_A_ROW = 8


class Turns:
    """Jobs of clients, in a fair order. Whoever calls holds a lock."""
    def __init__(self):
        self.clients = collections.OrderedDict()         # client → {id: Job}, both in the order of their turns
        self.jobs = {}                                   # id → Job
        self.last = None                                 # the client whose turn it was
        self.passed_over = 0                             # how often in a row it wasn't the first one's, for the model's sake

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

    def next(self, loaded=None):
        """The job of which a picture is to be made now, or None; it stays here until it is removed

        loaded: `Job.needs` of what is there
        """
        if not self.clients:
            return None
        if self.last in self.clients:                    # not before now: whoever came in the meantime goes first
            self.clients.move_to_end(self.last)
        firsts = {client: next(iter(own.values())) for client, own in self.clients.items()}
        first = next(iter(firsts))
        ready = next((client for client, job in firsts.items() if job.needs == loaded), first)
        self.passed_over = self.passed_over + 1 if ready != first and self.passed_over < MOST_IN_A_ROW else 0
        self.last = ready if self.passed_over else first
        return firsts[self.last]

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
            for other in jobs.values():                  # none here is over; a thousand may wait, so no property is called
                taken = other.count - other.number - (other is now)
                taken = taken if taken < turns else turns
                number, cost, turns = number + taken, cost + taken * other.cost, turns - taken
                if not turns:
                    break
        return number, cost
