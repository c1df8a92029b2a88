# bester.rb: a Bester handler in Ruby. Copy this file; it needs ffi-rzmq and msgpack
# (on Debian: apt-get install ruby ruby-ffi-rzmq ruby-msgpack).
#
#     require_relative "bester"
#     Bester.serve({ "hello" => ->(message) { message.reply("hello, #{message.user}") } })
#
# It speaks the fabric protocol (docs/fabric-protocol.md), in one thread, one message at a time.

require "ffi-rzmq"
require "json"
require "msgpack"

module Bester
  HELLO, WELCOME, HEARTBEAT, GOODBYE, ERROR, REQUEST, REPLY = 1, 2, 3, 4, 5, 10, 11
  DONE, FAILED, REFUSED = 0, 1, 2
  TEMPORARY = %w[overloaded try-later unreachable].freeze # refusals that pass
  ATTACHED_ABOVE = 16_384 # bytes of a body that go beside the batch
  INLINE_MOST = 32 << 20 # bytes of a reply's bodies within the batch: a frame above 64 MiB ends the link
  MOST_BYTES = 64 << 20   # of the bodies of one reply
  MOST_COMMANDS = 10_000  # of one reply
  BATCH_BYTES = 1 << 20   # a batch with so many is sent
  LINGER_MS = 1000    # how long the last replies may take to leave
  NO_REASON = "the handler refused the message".freeze
  MOST_DEEP = 100         # levels of a JSON text; a server lets 64 in

  # Raise it to refuse a message: its sender gets the reason in the report. Any other error stays in the log.
  class Refusal < StandardError; end

  # What a handler returned cannot be sent.
  class BadReply < StandardError; end

  # One message: raw is its payload as JSON text, user who sent it (nil where no user of this server did), id the same
  # at every redelivery, attempt above 1 where a handler before this one was lost over it, path the steps before this one.
  Message = Struct.new(:type, :raw, :user, :meta) do
    def data = JSON.parse(raw, max_nesting: MOST_DEEP)
    def id = meta["id"]
    def attempt = meta["attempt"] || 1
    def path = meta["path"] || []

    # Answer the sender.
    def reply(data)
      raise "there is no user to answer: no client sent this" if user.nil?

      Bester.send_clients([user], data)
    end
  end

  # JSON text that is passed on as it stands: Bester::Raw.new(message.raw) in place of data.
  Raw = Struct.new(:text)

  # What a handler returns: one of these, several in an array, or nil.
  def self.send_clients(users, data) = ["sendClients", users, text(data)]
  def self.send_handler(type, data) = ["sendHandler", [type], text(data)]
  def self.send_servers(servers, data, type = nil) = ["sendServers", servers, text(data), *type]
  def self.text(data) = data.is_a?(Raw) ? data.text : JSON.generate(data)

  # Serves until SIGTERM or SIGINT; then it takes no more, answers what it has, and returns.
  #
  # handlers maps message types to what is called with each message. Options, and where they come from otherwise:
  # fabric (BESTER_FABRIC), types (BESTER_TYPES, else the keys of handlers), name (BESTER_NAME), credit (64 messages at
  # once), lease_ms (30000: how long one message may keep this program from saying that it lives), and for CURVE key (a
  # file with the secret key, and FILE.pub beside it; BESTER_KEY) and server_key (BESTER_SERVER_KEY).
  def self.serve(handlers, **options) = Link.new(handlers, options).serve

  class Link
    def initialize(handlers, options)
      @handlers = handlers
      @fabric = options[:fabric] || given("BESTER_FABRIC") or raise "where is the broker? set BESTER_FABRIC to its URL"
      types = options[:types] || given("BESTER_TYPES")&.split(",") || handlers.keys
      @name = options[:name] || given("BESTER_NAME") || "handler-#{Process.pid}"
      @hello = { types: types, credit: options[:credit] || 64, lease_ms: options[:lease_ms] || 30_000,
                 software: "bester.rb" }
      @key = options[:key] || given("BESTER_KEY")
      @server_key = options[:server_key] || given("BESTER_SERVER_KEY")
      @context = ZMQ::Context.new
      @heartbeat = 2.0 # seconds
      @told = false # that no broker answers
      @welcome = false # whether the broker has taken this handler: before that there is nothing to finish
      @quiet = 0 # looks in vain, of half a heartbeat each: a program that was not run for a while has looked once
      @outgoing = []
      @attached = []
      @bytes = 0 # of bodies in @outgoing
    end

    def serve
      stop = false
      %w[TERM INT].each { |signal| Signal.trap(signal) { stop = true } }
      Signal.trap("HUP", "IGNORE") # a closed terminal ends no handler, as it ends no server
      open
      until @over
        if stop && !@left
          @left = true
          @over = !@welcome
          say(GOODBYE, "stopping")
          flush
        end
        turn unless @over
      end
    ensure
      @socket&.setsockopt(ZMQ::LINGER, LINGER_MS)
      @socket&.close
      @context.terminate
    end

    private

    def given(variable) = ENV[variable].to_s.empty? ? nil : ENV[variable]

    def now = Process.clock_gettime(Process::CLOCK_MONOTONIC)

    def check(code) = ZMQ::Util.resultcode_ok?(code) || raise("#{@fabric}: #{ZMQ::Util.error_string}")

    def open
      @socket = @context.socket(ZMQ::DEALER) or raise "#{@fabric}: #{ZMQ::Util.error_string}"
      @socket.setsockopt(ZMQ::LINGER, 0) # what a dead broker never read must not keep us
      @socket.setsockopt(ZMQ::SNDHWM, 0)
      @socket.setsockopt(ZMQ::RCVHWM, 0) # see the protocol: libzmq may abort
      @socket.setsockopt(ZMQ::IPV6, 1) if @fabric.include?("[")
      encrypt if @key
      check(@socket.connect(@fabric))
      @poller = ZMQ::Poller.new
      @poller.register_readable(@socket)
      @quiet = 0
      @welcome = false
      @sent = now
      hello
      flush
    end

    def encrypt
      check(@socket.setsockopt(ZMQ::CURVE_SECRETKEY, File.read(@key).strip))
      check(@socket.setsockopt(ZMQ::CURVE_PUBLICKEY, File.read("#{@key}.pub").strip))
      check(@socket.setsockopt(ZMQ::CURVE_SERVERKEY, @server_key.to_s))
    end

    # Waits half a heartbeat at most, and does what is due then.
    def turn
      @quiet += 1 if @poller.poll((@heartbeat * 500).ceil).zero?
      while (frames = receive)
        @quiet = 0
        read(frames.shift).each { |message| handle(message, frames) }
        flush
        return if @over
      end
      if @quiet >= 6 # three heartbeats of silence: begin anew
        warn "bester: no broker answers at #{@fabric}; trying again" unless @told || @left
        @told = true
        @socket.close
        @socket = nil
        @left ? @over = true : open
      elsif now - @sent >= @heartbeat / 2
        say(HEARTBEAT)
        flush
      end
    end

    def receive
      frames = []
      frames if ZMQ::Util.resultcode_ok?(@socket.recv_strings(frames, ZMQ::DONTWAIT)) && !frames.empty?
    end

    # The messages of a batch; what cannot be read is passed over.
    def read(frame)
      batch = MessagePack.unpack(frame)
      batch.is_a?(Array) ? batch.grep(Array) : []
    rescue StandardError, SystemStackError, NoMemoryError # a length that says more than there is
      []
    end

    def handle(message, attached)
      case message
      in [REQUEST, Integer => token, type, body, user, meta, *]
        request(token, type, body, user, meta || {}, attached)
      in [WELCOME, _, _, Hash => options, *]
        @told = false
        @welcome = true
        heartbeat_ms = options["heartbeat_ms"]
        @heartbeat = heartbeat_ms.clamp(10, 60_000) / 1000.0 if heartbeat_ms.is_a?(Integer)
      in [GOODBYE, *]
        @over = @left
      in [ERROR, "hello-first", *]
        @outgoing.clear # replies queued before are void
        @attached.clear
        @left ? @over = true : hello
      in [ERROR, code, text, HELLO, *] unless TEMPORARY.include?(code)
        raise "refused: #{code}: #{text}" # saying it again would not help
      in [ERROR, code, text, *]
        warn "bester: refused: #{code}: #{text}"
      else # a HEARTBEAT, or what a later version says
      end
    end

    def request(token, type, body, user, meta, attached)
      places = @attached.size
      raw = body.is_a?(Integer) ? (body.positive? && attached[body - 1]) : body
      raise "the body is not there" unless raw

      handler = @handlers.fetch(type) { raise "this handler does not serve #{type}" }
      say(REPLY, token, DONE, commands(handler.call(Message.new(type, raw.dup.force_encoding("UTF-8"), user, meta))), nil)
    rescue Refusal => error
      fail(token, REFUSED, error, places)
    rescue StandardError, SystemStackError, NotImplementedError => error
      warn "bester: #{type} failed on message #{meta["id"] if meta.is_a?(Hash)}: #{error.full_message(highlight: false)}"
      fail(token, FAILED, error, places)
    ensure
      flush if @bytes >= BATCH_BYTES || now - @sent >= @heartbeat / 2 # a long batch must not look like silence
    end

    def fail(token, status, error, places)
      @attached.slice!(places..) # those of the reply that is not to be
      note = error.message.to_s.dup
      note = NO_REASON.dup if status == REFUSED && (note.empty? || note == error.class.name) # a class's name is no reason
      note.force_encoding("UTF-8") if note.encoding == Encoding::BINARY # a string of bytes would not go as a text
      note = note.encode("UTF-8", invalid: :replace, undef: :replace).scrub[0, 500]
      say(REPLY, token, status, [], note.empty? ? error.class.name : note, *("bad-reply" if error.is_a?(BadReply)))
    end

    def commands(result)
      all = result.is_a?(Array) && !result.first.is_a?(String) ? result : [result].compact
      sound = all.all? { |each| each.is_a?(Array) && each[0].is_a?(String) && each[2].is_a?(String) }
      raise BadReply, "a handler returns commands, not #{result.inspect[0, 100]}" unless sound
      raise BadReply, "#{all.size} commands; a reply has #{MOST_COMMANDS} at most" if all.size > MOST_COMMANDS

      bytes = all.sum { |each| each[2].bytesize }
      raise BadReply, "bodies of #{bytes} bytes; a reply has #{MOST_BYTES} at most" if bytes > MOST_BYTES

      @bytes += bytes
      inline = 0
      all.map do |name, targets, body, *type|
        next [name, targets, (@attached << body).size, *type] if body.bytesize > ATTACHED_ABOVE || inline > INLINE_MOST

        inline += body.bytesize
        [name, targets, body.b, *type]
      end
    end

    def hello = say(HELLO, 1, "handler", @name, @hello)

    def say(*message) = @outgoing << message

    # Sends the queued messages as one batch. A batch that cannot be sent is dropped: the link is lost then.
    def flush
      return if @outgoing.empty?

      @socket.send_strings([MessagePack.pack(@outgoing), *@attached], ZMQ::DONTWAIT)
      @outgoing.clear
      @attached.clear
      @bytes = 0
      @sent = now
    end
  end
end
