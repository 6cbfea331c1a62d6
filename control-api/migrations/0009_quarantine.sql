-- Whom nobody can tell from another machine any more; and who was heard under each device's name, as JSON.
alter table devices add column quarantined_at bigint;
alter table reports add column heard text not null default '{}';
