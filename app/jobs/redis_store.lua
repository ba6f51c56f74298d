-- Every step of the job store, each in one piece, because a script is. redis_store.py calls it.
-- KEYS[1]: what all keys begin with. ARGV: the step's name, seconds that the clock is ahead (tests), the step's arguments.
--
--   job:ID     hash   a job                           expires   zset   waiting and ended jobs, by when they expire
--   ready:P    zset   queued jobs, by submission      hooks:R   zset   jobs whose webhook is to be called at R, by when
--   running    zset   claimed jobs, by when it ends   hooks     zset   such receivers, by when the first is
--   idem       hash   owner and idempotency key → job
--   counts     hash   jobs by state                   bytes     sum of requests and results      seq   of submissions
--
-- A server without memory refuses the first write of a script if that one could need more, but none after it. Steps that
-- must not stop then (claims, heartbeats, ends) therefore begin by taking something out; only a submission does not.

local prefix, step, ahead = KEYS[1], ARGV[1], tonumber(ARGV[2])
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1e6 + ahead
local BATCH = 100 -- jobs that one call looks after in passing

local RUNNING, EXPIRES, HOOKS = prefix .. 'running', prefix .. 'expires', prefix .. 'hooks'
local IDEM, COUNTS, BYTES = prefix .. 'idem', prefix .. 'counts', prefix .. 'bytes'

local function at(id) return prefix .. 'job:' .. id end
local function ready(priority) return prefix .. 'ready:' .. priority end
local function hooks(receiver) return prefix .. 'hooks:' .. receiver end
local function text(seconds) return string.format('%.6f', seconds) end
local function count(state, change) redis.call('HINCRBY', COUNTS, state, change) end
local function due(key, most) return redis.call('ZRANGEBYSCORE', key, '-inf', text(now), 'LIMIT', 0, most) end

-- The job as redis_store.py reads it; the result only when it is asked for.
local function read(id, result)
  local found = redis.call('HMGET', at(id), 'id', 'owner', 'endpoint', 'state', 'priority', 'request_id', 'steps',
    'steps_done', 'attempts', 'cancelling', 'created', 'started', 'ended', 'expires', 'webhook')
  found[#found + 1] = result and redis.call('HGET', at(id), 'result') or false
  return found
end

-- Its state; nil for a job that is not there, or is to be forgotten by now.
local function known(id)
  local state, ended, expires = unpack(redis.call('HMGET', at(id), 'state', 'ended', 'expires'))
  if state and not (ended and tonumber(expires) <= now) then return state end
end

local function holds(id, token)
  local state, held = unpack(redis.call('HMGET', at(id), 'state', 'token'))
  return state == 'running' and held == token
end

-- When the job's webhook is to be called; nil: never. Whether it was to be called before.
local function hook(id, when)
  local receiver = redis.call('HGET', at(id), 'receiver')
  if not receiver then return false end
  local was = redis.call('ZREM', hooks(receiver), id) == 1
  if when then redis.call('ZADD', hooks(receiver), text(when), id) end
  local first = redis.call('ZRANGE', hooks(receiver), 0, 0, 'WITHSCORES')
  if first[1] then redis.call('ZADD', HOOKS, first[2], receiver) else redis.call('ZREM', HOOKS, receiver) end
  return was
end

-- From running back to its old place in the queue.
local function requeue(id)
  redis.call('ZREM', RUNNING, id)
  redis.call('HDEL', at(id), 'token')
  local priority, seq = unpack(redis.call('HMGET', at(id), 'priority', 'seq'))
  redis.call('HSET', at(id), 'state', 'queued', 'steps_done', 0)
  redis.call('ZADD', ready(priority), seq, id)
  count('running', -1)
  count('queued', 1)
end

local function finish(id, state, result)
  local before, priority, ttl = unpack(redis.call('HMGET', at(id), 'state', 'priority', 'ttl'))
  local size = redis.call('HSTRLEN', at(id), 'body')
  redis.call('HDEL', at(id), 'body', 'token')
  redis.call('ZREM', RUNNING, id)
  redis.call('ZREM', ready(priority), id)
  local expires = text(now + ttl)
  redis.call('HSET', at(id), 'state', state, 'ended', text(now), 'expires', expires, 'cancelling', 0)
  if state == 'succeeded' then redis.call('HSET', at(id), 'steps_done', redis.call('HGET', at(id), 'steps')) end
  if result then redis.call('HSET', at(id), 'result', result) end
  redis.call('ZADD', EXPIRES, expires, id)
  hook(id, now)
  redis.call('INCRBY', BYTES, #(result or '') - size)
  count(before, -1)
  count(state, 1)
end

local function forget(id)
  local state, idem = unpack(redis.call('HMGET', at(id), 'state', 'idem'))
  local size = redis.call('HSTRLEN', at(id), 'result')
  hook(id, nil)
  redis.call('DEL', at(id))
  redis.call('ZREM', EXPIRES, id)
  if idem and redis.call('HGET', IDEM, idem) == id then redis.call('HDEL', IDEM, idem) end
  redis.call('DECRBY', BYTES, size)
  count(state, -1)
end

-- Running jobs whose claim has run out go back to the queue, or to `abandoned` if somebody wants them cancelled.
local function reclaim(abandoned)
  for _, id in ipairs(due(RUNNING, BATCH)) do
    if redis.call('HGET', at(id), 'cancelling') == '1' then abandoned(id) else requeue(id) end
  end
end

local function take(id, token, visibility)
  redis.call('HSET', at(id), 'state', 'running', 'token', token, 'started', text(now), 'steps_done', 0)
  redis.call('HINCRBY', at(id), 'attempts', 1)
  redis.call('ZADD', RUNNING, text(now + visibility), id)
  count('queued', -1)
  count('running', 1)
  local found = redis.call('HMGET', at(id), 'id', 'token', 'endpoint', 'body', 'priority', 'request_id', 'steps', 'attempts',
    'created', 'expires')
  found[#found + 1] = text(now)
  return found
end

local steps = {}

-- fields: those of the hash, by turns name and value
function steps.submit(id, priority, body, fingerprint, idem, ttl, max_waiting, max_bytes, ...)
  local kept = idem ~= '' and redis.call('HGET', IDEM, idem)
  if kept and known(kept) then
    if redis.call('HGET', at(kept), 'fingerprint') ~= fingerprint then return 'reused' end
    return { 'kept', read(kept, true) }
  end
  local queued = tonumber(redis.call('HGET', COUNTS, 'queued') or 0)
  local bytes = tonumber(redis.call('GET', BYTES) or 0)
  if queued >= tonumber(max_waiting) or bytes + #body > tonumber(max_bytes) then return 'full' end
  local seq, expires = redis.call('INCR', prefix .. 'seq'), text(now + ttl)
  if kept then forget(kept) end
  redis.call('HSET', at(id), 'id', id, 'priority', priority, 'body', body, 'fingerprint', fingerprint, 'ttl', ttl, 'seq', seq,
    'state', 'queued', 'created', text(now), 'expires', expires, ...)
  if idem ~= '' then
    redis.call('HSET', at(id), 'idem', idem)
    redis.call('HSET', IDEM, idem, id)
  end
  redis.call('ZADD', ready(priority), seq, id)
  redis.call('ZADD', EXPIRES, expires, id)
  redis.call('INCRBY', BYTES, #body)
  count('queued', 1)
  return { 'new', read(id) }
end

function steps.claim(visibility, ...)
  local tokens, taken = { ... }, {}
  reclaim(function() end)
  for _, priority in ipairs({ 'interactive', 'bulk' }) do
    for _ = 1, #tokens - #taken + BATCH do
      if #taken == #tokens then return taken end
      local id = redis.call('ZPOPMIN', ready(priority))[1]
      if not id then break end
      -- one that has expired has left its queue for good, and waits for a sweep to say so
      if tonumber(redis.call('HGET', at(id), 'expires')) > now then
        taken[#taken + 1] = take(id, tokens[#taken + 1], visibility)
      end
    end
  end
  return taken
end

-- by turns: id, token, steps done
function steps.heartbeat(visibility, ...)
  local beats, words = { ... }, {}
  for i = 1, #beats, 3 do
    local id, token, done = beats[i], beats[i + 1], beats[i + 2]
    if holds(id, token) then
      redis.call('ZREM', RUNNING, id)
      redis.call('ZADD', RUNNING, text(now + visibility), id)
      redis.call('HSET', at(id), 'steps_done', done)
      words[#words + 1] = redis.call('HGET', at(id), 'cancelling') == '1' and 'cancel' or 'go on'
    else
      words[#words + 1] = 'lost'
    end
  end
  return words
end

function steps.finish(id, token, state, result)
  if not holds(id, token) then return 0 end
  finish(id, state, result)
  return 1
end

function steps.release(id, token)
  if not holds(id, token) then return 0 end
  redis.call('ZREM', RUNNING, id)
  if redis.call('HGET', at(id), 'cancelling') == '1' then
    finish(id, 'cancelled')
  else
    redis.call('HINCRBY', at(id), 'attempts', -1)
    requeue(id)
  end
  return 1
end

function steps.cancel(id)
  reclaim(function() end)
  local state = known(id)
  if state == 'queued' then
    finish(id, 'cancelled')
  elseif state == 'running' then
    redis.call('HSET', at(id), 'cancelling', 1)
  end
  return state and read(id, true)
end

function steps.get(id) return known(id) and read(id, true) end

function steps.position(id)
  local priority, state = unpack(redis.call('HMGET', at(id), 'priority', 'state'))
  local rank = state == 'queued' and redis.call('ZRANK', ready(priority), id)
  if not rank then return false end
  return rank + (priority == 'bulk' and redis.call('ZCARD', ready('interactive')) or 0)
end

function steps.ended(...)
  local found = {}
  for _, id in ipairs({ ... }) do
    local state = redis.call('HGET', at(id), 'state')
    if state ~= 'queued' and state ~= 'running' then found[#found + 1] = id end
  end
  return found
end

function steps.sweep()
  local gone = {}
  local function finish_as(state)
    return function(id)
      finish(id, state)
      gone[#gone + 1] = read(id)
    end
  end
  reclaim(finish_as('cancelled'))
  for _, id in ipairs(due(EXPIRES, BATCH)) do
    local action = redis.call('HEXISTS', at(id), 'ended') == 1 and forget or finish_as('expired')
    action(id)
  end
  return gone
end

function steps.counts()
  local oldest = now
  for _, priority in ipairs({ 'interactive', 'bulk' }) do
    local id = redis.call('ZRANGE', ready(priority), 0, 0)[1]
    if id then oldest = math.min(oldest, tonumber(redis.call('HGET', at(id), 'created'))) end
  end
  local hooked = 0
  for _, receiver in ipairs(redis.call('ZRANGE', HOOKS, 0, -1)) do hooked = hooked + redis.call('ZCARD', hooks(receiver)) end
  return { redis.call('HGETALL', COUNTS), text(now - oldest), hooked }
end

-- then: receivers that are left out
function steps.claim_delivery(hold, ...)
  local full = {}
  for _, receiver in ipairs({ ... }) do full[receiver] = true end
  for _, receiver in ipairs(due(HOOKS, select('#', ...) + 1)) do
    if not full[receiver] then
      local id = redis.call('ZRANGE', hooks(receiver), 0, 0)[1]
      hook(id, now + hold)
      return { id, redis.call('HGET', at(id), 'webhook'), redis.call('HINCRBY', at(id), 'tries', 1), receiver }
    end
  end
end

function steps.settle_delivery(id, tries, again_in)
  if redis.call('HGET', at(id), 'tries') ~= tries or not hook(id, nil) then return 0 end
  if again_in then hook(id, now + again_in) end
  return 1
end

return steps[step](unpack(ARGV, 3))
