-- Whether a device's target was set for it alone, and so counts before its fleet's: all of them were until now.
alter table targets add column own bigint not null default 1;

-- How releases travel over a fleet, where nobody says otherwise.
alter table fleets add column policy_id bigint references policies (id) on delete set null;

-- Devices that stay at one release of their fleet, whatever is rolled out.
create table release_pins (
    device_id ROW_KEY references devices (id) on delete cascade,
    release_id bigint not null references releases (id) on delete cascade,
    pinned_by text not null,
    pinned_at bigint not null
);
create index release_pins_by_release on release_pins (release_id);
create index rollouts_by_release on rollouts (release_id, id);

-- Fleets that devices name already.
insert into fleets (name, description, created_at, updated_at)
    select l.value, '', min(d.enrolled_at), min(d.enrolled_at)
    from device_labels l join devices d on d.id = l.device_id
    where l.label = 'fleet' and trim(l.value) <> ''
    group by l.value;
