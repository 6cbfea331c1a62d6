-- Deliveries are worked on by a task: with which secret and request each came, until when it is somebody's, and which
-- one it repeats.
alter table webhook_deliveries add column secret text;
alter table webhook_deliveries add column request_id text not null default '';
alter table webhook_deliveries add column claimed_until bigint not null default 0;
alter table webhook_deliveries add column again_of bigint;
