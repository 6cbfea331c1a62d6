-- Each audit row carries the hash of its content and of the row before it.
alter table audit add column hash text;

-- One row. Whoever writes history changes it first, and so waits for whoever did before: numbers come in the order
-- of commits, and each audit row follows one other. Up to `…_pruned` history was removed on purpose.
create table history_head (
    id ROW_KEY,
    last_event bigint not null,
    events_pruned bigint not null,
    last_audit bigint not null,
    audit_hash text not null,
    audit_pruned bigint not null,
    audit_pruned_hash text not null
);
insert into history_head
    (id, last_event, events_pruned, last_audit, audit_hash, audit_pruned, audit_pruned_hash)
select 1, coalesce(max(id), 0), 0, 0,
    '0000000000000000000000000000000000000000000000000000000000000000', 0,
    '0000000000000000000000000000000000000000000000000000000000000000'
from events;

create index webhook_deliveries_by_end on webhook_deliveries (done_at);
create index rollouts_by_end on rollouts (ended_at);
