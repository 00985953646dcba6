-- about: what `benches/steps.rs` counts the instructions of: a section for each table, the first transaction of which is not counted
-- setup
create table seat (id bigint primary key, section text, row int, number int, price numeric(8,2), sold boolean, held_until timestamptz, note text);
create table hot (id bigint primary key, section text, row int, number int, price numeric(8,2), sold boolean, held_until timestamptz, note text);
alter table hot replica identity full;
insert into hot select i, 'section ' || i, i, i, i + 0.5, false, '2026-11-22 12:00:00+00', 'a note of some length that makes the row as long as rows are' from generate_series(0, 9) i;
create table booking (id bigint primary key, email text not null, booked_at timestamptz not null);
create table ticket (id bigint primary key, booking_id bigint not null references booking, section text, row int, number int, price numeric(8,2));
create table outbox (id uuid primary key, aggregatetype text not null, aggregateid text not null, type text not null, payload jsonb);
create table golden_end (id int primary key);
-- stream
do $$ begin for t in 0 .. 20 loop insert into seat select i, 'section ' || i % 40, i % 50, i % 97, i % 300 + 0.5, i % 3 = 0, timestamptz '2026-11-22 12:00:00+00' + i * interval '1.001 s', 'a note of some length that makes the row as long as rows are' from generate_series(t * 10, t * 10 + 9) i; commit; end loop; end $$;
do $$ begin for t in 0 .. 10 loop update hot set price = t + 1.25, sold = not sold; commit; end loop; end $$;
do $$ begin for t in 0 .. 50 loop insert into booking values (t, 'somebody' || t || '@acme.example', '2026-11-22 12:00:00+00'); insert into ticket select t * 3 + k, t, 'section ' || t % 40, t % 50, k, t % 300 + 0.5 from generate_series(0, 2) k; commit; end loop; end $$;
do $$ begin for t in 0 .. 50 loop update ticket set number = number + 10 where id in (t * 3, t * 3 + 1); commit; end loop; end $$;
do $$ begin for t in 0 .. 100 loop insert into outbox values (md5(t::text)::uuid, 'order', 'order-' || t, 'OrderPlaced', jsonb_build_object('orderId', t, 'total', t + 0.5, 'lines', jsonb_build_array(jsonb_build_object('sku', 'SKU-' || t, 'quantity', 2)))); commit; end loop; end $$;
insert into golden_end values (1);
