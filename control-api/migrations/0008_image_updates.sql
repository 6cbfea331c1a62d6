-- What a device, or a fleet for its devices, says of its own image updates: JSON, or nothing.
alter table devices add column image_updates text;
alter table fleets add column image_updates text;

-- Whether a person began it: who takes no pushes by themselves is left out of the others.
alter table rollouts add column is_ordered bigint not null default 1;
