"""A request that its client resumed on another router: what the older router still says of it."""

from __future__ import annotations

from hyperflexis_scheduler.core.request import Phase


class TestTakenOver:
    def taken_over(self, stage):
        """r1 submitted it, r2 has it."""
        worker, older, newer = stage.worker(), stage.router("r1"), stage.router("r2")
        older.submit("q", owner_gen=11)
        newer.submit("q", owner_gen=22, resume=True, last_attempt=worker.last("run").attempt)
        return worker, older, newer

    def test_the_older_router_cannot_cancel_it(self, stage):
        worker, older, newer = self.taken_over(stage)
        older.cancel("q", owner_gen=11)
        assert not worker.all("cancel") and stage.core.cell.book.get("q").phase is Phase.PLACED
        newer.cancel("q", owner_gen=22)
        assert worker.last("cancel").request_id == "q"

    def test_the_older_router_cannot_close_it(self, stage):
        worker, older, newer = self.taken_over(stage)
        older.done("q", owner_gen=11)
        worker.update("lost", worker.last("run"))
        assert newer.last("lost").request_id == "q"
        older.done("q", owner_gen=11)
        assert stage.core.cell.book.get("q").phase is Phase.LOST
        newer.done("q", owner_gen=22)
        assert stage.core.cell.book.get("q").phase is Phase.FINISHED

    def test_what_the_older_router_closed_is_open_again_for_the_newer(self, stage):
        worker, older, newer = stage.worker(), stage.router("r1"), stage.router("r2")
        older.submit("q", owner_gen=11)
        older.done("q", owner_gen=11)
        newer.submit("q", owner_gen=22, resume=True, last_attempt=worker.last("run").attempt)
        worker.update("lost", worker.last("run"))
        assert newer.last("lost").request_id == "q"

    def test_a_cancel_without_an_owner_counts_whoever_has_it(self, stage):
        worker, older, _ = self.taken_over(stage)
        older.cancel("q")
        assert worker.last("cancel").request_id == "q"

    def test_the_older_routers_cancel_may_come_before_the_newer_ones_submit(self, stage):
        worker, older, newer = stage.worker(), stage.router("r1"), stage.router("r2")
        older.submit("q", owner_gen=11)
        older.cancel("q", owner_gen=11)
        newer.submit("q", owner_gen=22, resume=True, last_attempt=worker.last("run").attempt)
        assert newer.last("placed").attempt == worker.last("run").attempt and len(worker.all("run")) == 2

    def test_so_may_one_that_a_new_leader_hears_first(self, stage):
        worker, older, newer = stage.worker(), stage.router("r1"), stage.router("r2")
        older.cancel("q", owner_gen=11)
        newer.submit("q", owner_gen=22, resume=True)
        assert newer.last("placed").attempt == worker.last("run").attempt

    def test_an_owner_does_not_bring_back_what_it_has_cancelled(self, stage):
        worker, _, newer = self.taken_over(stage)
        newer.cancel("q", owner_gen=22)
        newer.submit("q", owner_gen=22, resume=True)
        assert newer.last("refused").message == "cancelled" and len(worker.all("run")) == 1

    def test_nobody_brings_back_what_was_cancelled_for_whoever_owns_it(self, stage):
        worker, older, newer = self.taken_over(stage)
        newer.cancel("q")
        older.submit("q", owner_gen=11, resume=True)
        newer.submit("q", owner_gen=22, resume=True)
        assert older.last("refused").message == newer.last("refused").message == "cancelled"
        assert len(worker.all("run")) == 1

    def test_an_older_owners_submit_may_come_last_and_its_cancel_after_that(self, stage):
        worker, older, newer = self.taken_over(stage)
        older.submit("q", owner_gen=11, resume=True)
        older.cancel("q", owner_gen=11)
        failed = worker.last("run").attempt
        newer.submit("q", owner_gen=22, resume=True, last_attempt=failed, last_attempt_failed=True)
        assert newer.last("placed").attempt == worker.last("run").attempt != failed
